"""Everything that uses DeepSpeed: its configuration files, the policy and the reference."""
