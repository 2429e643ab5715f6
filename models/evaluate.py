"""Held-out scores of the embedded pair, as the model cards state them: `python -m models.evaluate`.

Accuracy of sampled solutions on problems training never saw, cross entropy on both kinds of text, and how often
the draft's most probable token is the target's.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from models.corpus import ProblemStream, source_tokens
from models.problems import Problem, answer_of, problems

HERE = Path(__file__).parent
ROW = 512


@torch.inference_mode()
def accuracy(model: nn.Module, tokenizer: Tokenizer, asked: list[Problem], temperature: float, seed: int) -> float:
    """Share of problems whose sampled solution ends in the right answer."""
    torch.manual_seed(seed)
    end = tokenizer.token_to_id("<|end|>")
    right = 0
    prompts = [tokenizer.encode(f"<|begin|><|user|>{p.question}<|end|><|assistant|>").ids for p in asked]
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):  # equal lengths need no padding
        by_length.setdefault(len(prompt), []).append(i)
    for members in by_length.values():
        output = model.generate(
            torch.tensor([prompts[i] for i in members]),
            attention_mask=torch.ones(len(members), len(prompts[members[0]]), dtype=torch.long),
            max_new_tokens=80,
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_k=0,
            top_p=1.0,
            eos_token_id=end,
            pad_token_id=end,
        )
        for i, row in zip(members, output.tolist(), strict=True):
            text = tokenizer.decode(row[len(prompts[i]) :])
            right += answer_of(text) == asked[i].answer
    return right / len(asked)


@torch.inference_mode()
def compare(target: nn.Module, draft: nn.Module | None, rows: Tensor, weights: Tensor) -> dict[str, float]:
    """Cross entropies (nats per token) and top-1 agreement over rows [B, T]; weights [B, T-1] choose targets."""
    chosen = weights.flatten() > 0
    own = target(input_ids=rows[:, :-1]).logits.flatten(0, 1)[chosen]
    wanted = rows[:, 1:].flatten()[chosen]
    scores = {"cross_entropy": F.cross_entropy(own, wanted).item()}
    if draft is not None:
        other = draft(input_ids=rows[:, :-1]).logits.flatten(0, 1)[chosen]
        scores["draft_cross_entropy"] = F.cross_entropy(other, wanted).item()
        scores["draft_agreement"] = (own.argmax(-1) == other.argmax(-1)).float().mean().item()
    return {name: round(value, 4) for name, value in scores.items()}


def texts(tokenizer: Tokenizer, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Held-out rows [count, 512] and target weights of both kinds: whole source text, solutions of problems."""
    source = torch.from_numpy(source_tokens(tokenizer, held_out=True)).long()
    starts = torch.linspace(0, len(source) - ROW - 1, count).long()
    rows = torch.stack([source[s : s + ROW] for s in starts.tolist()])
    stream = ProblemStream(tokenizer, seed=10_000, held_out=True)
    taken = [stream.take(ROW) for _ in range(count)]
    tokens = torch.stack([torch.from_numpy(t).long() for t, _ in taken])
    solution = torch.stack([torch.from_numpy(w) for _, w in taken])[:, 1:] >= 1.0
    return {"source": (rows, torch.ones(count, ROW - 1)), "problems": (tokens, solution.float())}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description=__doc__)
    parser.add_argument("--target", default=str(HERE / "drafthouse-tiny"))
    parser.add_argument("--draft", default=str(HERE / "drafthouse-tiny-draft"))
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--rows", type=int, default=32)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(Path(args.target) / "tokenizer.json"))
    target = AutoModelForCausalLM.from_pretrained(args.target).eval()
    has_draft = (Path(args.draft) / "config.json").exists()
    draft = AutoModelForCausalLM.from_pretrained(args.draft).eval() if has_draft else None
    asked = list(itertools.islice(problems(10_000, held_out=True), args.problems))
    report: dict[str, object] = {"problems": args.problems}
    for temperature in (0.0, 0.7, 1.0):
        report[f"accuracy_T{temperature:g}"] = round(accuracy(target, tokenizer, asked, temperature, seed=1), 4)
    for kind, (rows, weights) in texts(tokenizer, args.rows).items():
        report[kind] = compare(target, draft, rows, weights)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
