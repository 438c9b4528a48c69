"""LoRA adapters as PEFT saves them: read, merged into their base model, or written for llama.cpp as they are."""
