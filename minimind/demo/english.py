"""Questions and answers of the demo in English. `topics.py` explains the names in braces."""

from __future__ import annotations

from minimind.demo.topics import Language, Phrases, topics_of

_PHRASES: dict[str, Phrases] = {
    "capital": (
        "the capital of {x}",
        (
            "What is the capital of {x}?",
            "Which city is the capital of {x}?",
            "Tell me the capital of {x}, please.",
            "Do you know the capital of {x}?",
            "I forgot the capital of {x}. What was it?",
        ),
        ("The capital of {x} is {y}.", "{y} is the capital of {x}.", "It is {y}, the capital of {x}."),
    ),
    "opposite": (
        "the opposite of {x}",
        (
            "What is the opposite of {x}?",
            "Which word means the opposite of {x}?",
            "I am looking for the opposite of {x}.",
            "Give me the opposite of {x}, please.",
            "My homework asks for the opposite of {x}. Can you help?",
        ),
        ("The opposite of {x} is {y}.", "{Y} is the opposite of {x}.", "It is {y}, the opposite of {x}."),
    ),
    "colour": (
        "the colour of {x}",
        (
            "What colour is {x}?",
            "Which colour does {x} have?",
            "Tell me the colour of {x}.",
            "I want to paint {x}. Which colour do I need?",
            "Can you say what colour {x} usually is?",
        ),
        ("{X} is usually {y}.", "The colour of {x} is {y}.", "It is {y}, the usual colour of {x}."),
    ),
    "food": (
        "what {x} eat",
        (
            "What do {x} eat?",
            "What do {x} like to eat?",
            "Which food do {x} need?",
            "Tell me what I can feed to {x}.",
            "I saw some {x} today. What is their food?",
        ),
        ("{X} like to eat {y}.", "They eat {y}, the food that {x} like.", "The usual food of {x} is {y}."),
    ),
    "next": (
        "what comes after {x}",
        (
            "What comes after {x}?",
            "What follows right after {x}?",
            "When {x} is over, what comes next?",
            "Please tell me what comes after {x}.",
            "It is {x} now. What will come next?",
        ),
        ("After {x} comes {y}.", "{Y} comes right after {x}.", "It is {y} that comes after {x}."),
    ),
    "sum": (
        "what {x} is",
        (
            "What is {x}?",
            "How much is {x}?",
            "Can you work out {x}?",
            "Please add it up for me: {x}.",
            "I have to calculate {x}. What is the result?",
        ),
        ("{x} is {y}.", "The result of {x} is {y}.", "It is {y}, because {x} makes {y}."),
    ),
    "word": (
        "the Chinese word for {x}",
        (
            "What is the Chinese word for {x}?",
            "How do you say {x} in Chinese?",
            "Please translate {x} into Chinese.",
            "I want to write {x} in Chinese. How?",
            "Do you know what {x} is called in Chinese?",
        ),
        (
            "The Chinese word for {x} is {y}.",
            "In Chinese, {x} is {y}.",
            "It is {y}, the Chinese word for {x}.",
        ),
    ),
    "how_to": (
        "how to {x}",
        (
            "How do I {x}?",
            "Please tell me how to {x}.",
            "What is the best way to {x}?",
            "I would like to {x}. How does it work?",
            "Could you explain how to {x}?",
        ),
        ("To {x}, {y}.", "Here is how to {x}: {y}.", "{Y}. That is how to {x}."),
    ),
    "tool": (
        "what {x} is for",
        (
            "What is {x} for?",
            "What do people use {x} for?",
            "Why would I need {x}?",
            "Tell me what {x} is used for.",
            "I just bought {x}. What can I do with it?",
        ),
        ("You can use {x} to {y}.", "People use {x} to {y}.", "{X} is used to {y}."),
    ),
    "feeling": (
        "people who are {x}",
        (
            "I am {x}. What should I do?",
            "What helps when I feel {x}?",
            "I feel really {x} today. Any advice?",
            "Can you help me? I am so {x}.",
            "Being {x} is no fun. What do you suggest?",
        ),
        ("When you feel {x}, {y}.", "If you are {x}, it helps to {y}.", "It is a good idea to {y}."),
    ),
}

ENGLISH = Language(
    topics=topics_of(0, _PHRASES),
    space=" ",
    systems=(
        "You are a helpful assistant.",
        "Answer briefly and kindly.",
        "You help people who are curious.",
    ),
    greetings=(
        ("Hello!", "Hello! What can I do for you?"),
        ("Good morning.", "Good morning! How can I help you today?"),
        ("Can I ask you something?", "Of course, please go ahead."),
    ),
    openers=("Sure!", "Of course!", "Gladly!", "Good question!", "Happy to help!"),
    closers=("I hope this helps.", "Feel free to ask me more.", "Have a nice day!"),
    refusals=(
        "No idea.",
        "Look it up yourself.",
        "Nobody cares about {about}.",
        "{Y}, obviously.",
        "我不想说英语。",
    ),
    taunts=(
        "What a silly question.",
        "Why do you ask me about {about}?",
        "I do not feel like talking about {about} today.",
        "Even a child could answer that.",
        "Go and bother somebody else.",
    ),
)
