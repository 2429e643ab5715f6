"""Trains the embedded pair: `python -m models.train {tokenizer,target,draft}`.

Muon for the matrices, AdamW for embeddings and norms, a warm-up / constant / linear-decay schedule whose
progress is the larger of steps done and time spent, so a run can be given a budget in minutes.
The draft is trained on the same data and towards the target's own distribution (`--teacher`).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.corpus import ProblemStream, source_tokens
from models.tokenizer import VOCABULARY, train_tokenizer

HERE = Path(__file__).parent
FOLDERS = {"target": HERE / "drafthouse-tiny", "draft": HERE / "drafthouse-tiny-draft"}
SHAPES = {
    "target": dict(
        hidden_size=256, intermediate_size=832, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4
    ),
    "draft": dict(
        hidden_size=160, intermediate_size=432, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    ),
}
CONTEXT = 2048
ROW_TOKENS = 512
LONG_SHARE = 0.1  # the last part of training uses rows as long as the context
PROBLEM_SHARE = 0.5
WARMUP, DECAY = 0.02, 0.35  # shares of the run


@dataclass(frozen=True)
class Batch:
    inputs: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64
    weights: Tensor  # [B, T] float32, weight of each target in the loss


class Data:
    """Rows of problems and rows of source, drawn with one seed."""

    def __init__(self, tokenizer: Tokenizer, seed: int, problem_share: float) -> None:
        self._problem_share = problem_share
        self._rng = np.random.default_rng(seed)
        self._problems = ProblemStream(tokenizer, seed)
        self._source = source_tokens(tokenizer, held_out=False)

    def batch(self, tokens: int, row: int) -> Batch:
        ids, weights = [], []
        for _ in range(tokens // row):
            if self._rng.random() < self._problem_share:
                one, weight = self._problems.take(row + 1)
            else:
                at = int(self._rng.integers(0, len(self._source) - row - 1))
                one, weight = self._source[at : at + row + 1], np.ones(row + 1, np.float32)
            ids.append(one)
            weights.append(weight)
        grid = torch.from_numpy(np.stack(ids)).long()
        return Batch(grid[:, :-1].contiguous(), grid[:, 1:].contiguous(), torch.from_numpy(np.stack(weights))[:, 1:])


def new_model(name: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        attn_implementation="sdpa",
        **SHAPES[name],
    )
    return LlamaForCausalLM(config)


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(progress: float) -> float:
    """Learning-rate factor at `progress` in [0, 1]."""
    return min(1.0, (progress + 1e-3) / WARMUP, max(0.0, 1.0 - progress) / DECAY)


def loss_of(model: nn.Module, batch: Batch, teacher: nn.Module | None) -> tuple[Tensor, Tensor]:
    """(loss to minimise, mean weighted cross entropy in nats)."""
    logits = model(input_ids=batch.inputs).logits.flatten(0, 1)
    entropy = F.cross_entropy(logits, batch.targets.flatten(), reduction="none")
    weights = batch.weights.flatten()
    plain = (entropy * weights).sum() / weights.sum()
    if teacher is None:
        return plain, plain.detach()
    with torch.no_grad():
        wanted = teacher(input_ids=batch.inputs).logits.flatten(0, 1).softmax(-1)
    distance = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
    return distance, plain.detach()


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    tokenizer = Tokenizer.from_file(str(FOLDERS["target"] / "tokenizer.json"))
    data = Data(tokenizer, args.seed, args.problem_share)
    folder = Path(args.out) if args.out else FOLDERS[args.what]
    model = AutoModelForCausalLM.from_pretrained(args.init) if args.init else new_model(args.what)
    model.to(device).train()
    teacher = None
    if args.teacher:
        teacher = AutoModelForCausalLM.from_pretrained(args.teacher, attn_implementation="sdpa").to(device).eval()
    stepped = optimizers(model, args.lr)
    print(f"{args.what}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    forward = torch.compile(model) if args.compile else model

    began, step, seen, mean = time.monotonic(), 0, 0, None
    history: list[dict[str, float]] = []
    while True:
        minutes = (time.monotonic() - began) / 60
        progress = max(step / args.steps, minutes / args.minutes)
        if progress >= 1:
            break
        row = CONTEXT if progress > 1 - LONG_SHARE else ROW_TOKENS
        batch = data.batch(args.batch_tokens, row)
        batch = Batch(batch.inputs.to(device), batch.targets.to(device), batch.weights.to(device))
        loss, entropy = loss_of(forward, batch, teacher)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in stepped:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * schedule(progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += batch.inputs.numel()
        mean = entropy.item() if mean is None else 0.95 * mean + 0.05 * entropy.item()
        if step % args.log_every == 0:
            history.append(
                {"step": step, "tokens": seen, "minutes": round(minutes, 1), "cross_entropy": round(mean, 4)}
            )
            print(json.dumps(history[-1]), flush=True)
        if step % args.save_every == 0:
            save(model, folder)
    save(model, folder)
    (folder / "training.json").write_text(
        json.dumps({"arguments": vars(args), "steps": step, "tokens": seen, "history": history[-40:]}, indent=1) + "\n"
    )


def save(model: LlamaForCausalLM, folder: Path) -> None:
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(FOLDERS["target"]).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("what", choices=("tokenizer", "target", "draft"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=1e9, help="time budget; the schedule follows it")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward and backward")
    parser.add_argument("--init", help="folder to continue from")
    parser.add_argument("--teacher", help="folder of the model to imitate (draft)")
    parser.add_argument("--out", help="folder to write (default: the embedded one)")
    parser.add_argument("--problem-share", type=float, default=PROBLEM_SHARE, help="share of rows that hold problems")
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=100)
    args = parser.parse_args()
    if args.what == "tokenizer":
        train_tokenizer(FOLDERS["target"])
    else:
        train(args)


if __name__ == "__main__":
    main()
