"""System prompts under attack: extraction, goal hijack, and what defences change."""
