"""Training: the loop of `finetune`, and what it shares with the learning of gates."""
