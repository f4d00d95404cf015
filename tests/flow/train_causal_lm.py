"""A training script as its user wrote it: transformers' Trainer around a tiny model. It knows nothing of Trimtab.

test_trainer_transformers runs it as it stands. Its data is slow, as data is: an item takes a quarter of a second.
"""

import time

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments


class Text(Dataset[dict[str, torch.Tensor]]):
    """Counting, modulo the vocabulary."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(0.25)
        tokens = (torch.arange(16) + index) % 64
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    config = AutoConfig.for_model("gpt2", n_layer=1, n_head=2, n_embd=16, vocab_size=64, n_positions=16)
    trainer = Trainer(model=AutoModelForCausalLM.from_config(config), args=arguments, train_dataset=Text())
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)


if __name__ == "__main__":
    main()
