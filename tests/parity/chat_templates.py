"""Chat templates of model families, with what a person reads from them: how an assistant's turn begins and ends.

The longer templates are files of `shared/templates`; the short ones are written down here.
"""

from __future__ import annotations

import dataclasses

CHATML = r"<\|im_start\|>assistant\n(.*?<\|im_end\|>\n)"
LLAMA_3 = r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)"
COHERE = r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>(.*?<\|END_OF_TURN_TOKEN\|>)"
DEEPSEEK = r"<｜Assistant｜>(.*?<｜end▁of▁sentence｜>)"
GEMMA = r"<start_of_turn>model\n(.*?<end_of_turn>\n)"
PHI_3 = r"<\|assistant\|>\n(.*?<\|end\|>\n)"
# Its turns have no end of their own: the next header or the end of the text follows.
GLM = r"<\|assistant\|>(.*?)(?=<\|(?:user|observation|system|assistant)\|>|\Z)"
# Reasoning in another channel comes before the answer, in the same turn.
GPT_OSS = r"<\|start\|>assistant(.*?(?:<\|return\|>|<\|call\|>|<\|end\|>(?!<\|start\|>assistant)))"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A template and what its turns look like.

    Attributes:
        turn: regular expression of a turn in a rendering whose messages contain no markers; group 1 is what counts.
        source: the template; empty for a file of `shared/templates`.
        refuses: conversations that the template cannot render, or of which it leaves out a part.
        pieces: the tokenizer is of the SentencePiece kind instead of byte-level BPE.
    """

    turn: str
    source: str = ""
    refuses: frozenset[str] = frozenset()
    pieces: bool = False


NO_TOOLS = frozenset({"tools"})
_EACH, _DONE = "{% for m in messages %}", "{% endfor %}"
_IF_PROMPT = "{% if add_generation_prompt %}"
_NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"

FAMILIES = {
    "cohere": Family(turn=COHERE, refuses=NO_TOOLS),
    "cohere2": Family(
        turn=COHERE.replace("CHATBOT_TOKEN\\|>", "CHATBOT_TOKEN\\|><\\|START_RESPONSE\\|>"), refuses=NO_TOOLS
    ),
    "deepseekv3": Family(turn=DEEPSEEK, refuses=NO_TOOLS, pieces=True),
    "gemma": Family(turn=GEMMA, refuses=NO_TOOLS | {"system"}, pieces=True),
    "gemma3": Family(turn=GEMMA, refuses=NO_TOOLS, pieces=True),
    "glm4moe": Family(turn=GLM),
    "gptoss": Family(turn=GPT_OSS),
    "lfm2": Family(turn=CHATML, refuses=NO_TOOLS),
    "lfm2_2_5": Family(turn=CHATML),
    "llama3": Family(turn=LLAMA_3, refuses=NO_TOOLS),
    "llama3_1": Family(turn=LLAMA_3),
    "llama3_2": Family(turn=LLAMA_3),
    "nemotron_3_nano": Family(turn=CHATML),
    "nemotron_3_super": Family(turn=CHATML),
    "nemotron_3_ultra": Family(turn=CHATML),
    "phi3": Family(turn=PHI_3, refuses=NO_TOOLS, pieces=True),
    "phi3_5": Family(turn=PHI_3, refuses=NO_TOOLS, pieces=True),
    "qwen2_5": Family(turn=CHATML),
    "qwen2_5_vl": Family(turn=CHATML, refuses=NO_TOOLS),
    "qwen3": Family(turn=CHATML),
    "qwen3_5_nothink": Family(turn=CHATML),
    "qwen3_5_think": Family(turn=CHATML),
    "qwen3_6": Family(turn=CHATML),
    "qwen3_instruct_2507": Family(turn=CHATML),
    "qwen3_vl": Family(turn=CHATML),
    "Mistral": Family(
        turn=r"\[/INST\] ?(.*?</s>)",
        source="<s>" + _NO_SYSTEM + _EACH + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}" + _DONE,
        refuses=NO_TOOLS | {"system"},
        pieces=True,
    ),
    "Llama-2": Family(
        turn=r"\[/INST\] (.*? </s>)",
        source="{% set ns = namespace(system='') %}" + _EACH + "{% if m.role == 'system' %}"
        "{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}{% elif m.role == 'user' %}"
        "<s>[INST] {{ ns.system + m.content.strip() }} [/INST]{% set ns.system = '' %}"
        "{% else %} {{ m.content.strip() }} </s>{% endif %}" + _DONE,
        refuses=NO_TOOLS,
        pieces=True,
    ),
    "Zephyr": Family(
        turn=r"<\|assistant\|>\n(.*?</s>\n)",
        source=_EACH
        + "{{ '<|' + m.role + '|>\n' + m.content + '</s>\n' }}"
        + _DONE
        + _IF_PROMPT
        + "{{ '<|assistant|>\n' }}{% endif %}",
        refuses=NO_TOOLS,
        pieces=True,
    ),
    "Tulu": Family(
        turn=r"<\|assistant\|>\n(.*?</s>)",
        source=_EACH + "{{ '<|' + m.role + '|>\n' + m.content }}{% if m.role == 'assistant' %}</s>{% endif %}"
        "{% if not loop.last %}{{ '\n' }}{% endif %}" + _DONE + _IF_PROMPT + "{{ '\n<|assistant|>\n' }}{% endif %}",
        refuses=NO_TOOLS,
    ),
    "Vicuna": Family(
        turn=r"ASSISTANT:(.*?</s>)",
        source="{{ messages[0].content + ' ' if messages[0].role == 'system' }}" + _EACH + "{% if m.role == 'user' %}"
        "USER: {{ m.content }} {% elif m.role == 'assistant' %}ASSISTANT: {{ m.content }}</s>{% endif %}"
        + _DONE
        + _IF_PROMPT
        + "ASSISTANT:{% endif %}",
        refuses=NO_TOOLS,
        pieces=True,
    ),
    "GLM-4": Family(
        turn=GLM.replace("assistant\\|>(", "assistant\\|>\\n(", 1),
        source="[gMASK]<sop>"
        + _EACH
        + "{{ '<|' + m.role + '|>\n' + m.content }}"
        + _DONE
        + _IF_PROMPT
        + "<|assistant|>\n{% endif %}",
        refuses=NO_TOOLS,
    ),
    "DeepSeek-R1": Family(
        turn=DEEPSEEK,
        source="<｜begin▁of▁sentence｜>"
        + _EACH
        + "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
        "{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + "
        "m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}"
        + _DONE
        + _IF_PROMPT
        + "{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        refuses=NO_TOOLS,
    ),
    "Phi-4-mini": Family(
        turn=r"<\|assistant\|>(.*?<\|end\|>)",
        source=_EACH
        + "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}"
        + _DONE
        + _IF_PROMPT
        + "{{ '<|assistant|>' }}{% else %}{{ '<|endoftext|>' }}{% endif %}",
        refuses=NO_TOOLS,
    ),
    "Command-R": Family(
        turn=COHERE,
        source="<BOS_TOKEN>"
        + _EACH
        + "{{ '<|START_OF_TURN_TOKEN|><|' + {'system': 'SYSTEM', 'user': 'USER', 'assistant': "
        "'CHATBOT'}[m.role] + '_TOKEN|>' + m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
        + _DONE
        + _IF_PROMPT
        + "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        refuses=NO_TOOLS,
    ),
}
