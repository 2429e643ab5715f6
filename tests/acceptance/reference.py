"""The embedded model through transformers, with nothing of ours in between."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.embedded import TARGET, locate

MODEL = TARGET
CODE = (
    "def read_lines(path):\n    with open(path) as handle:\n        return handle.readlines()\n",
    "import os\nimport sys\n\n\nclass Error(Exception):\n    pass\n",
    "for i in range(10):\n    print(i)\n",
    "    def __init__(self, name):\n        self.name = name\n",
    "if __name__ == '__main__':\n    main()\n",
    'raise ValueError("unknown value: %r" % value)\n',
)
QUESTIONS = (
    "Tom has 3 boxes with 8 pens in each. He loses 5. How many pens does Tom have now?",
    "Mia has 7 apples. She buys 5 more. How many apples does Mia have now?",
    "Sam has 12 books. He gives 4 to Ann. How many books does Sam have now?",
    "Ann buys 4 books for 6 dollars each. She pays with 50 dollars. How much change does Ann get?",
    "There are 9 birds in a tree. 3 fly away and 2 come. How many birds are in the tree?",
    "Leo reads 5 pages a day for 4 days. The book has 30 pages. How many pages are left?",
)
PLAIN = ("naïve café 😀 ∑x² — “quoted”", "7", "x", "\n\n\n", "   ", "0123456789" * 8)


class Reference:
    """Log-probabilities and greedy tokens in float32, one sequence at a time."""

    def __init__(self) -> None:
        folder = locate(MODEL)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.eos = int(self.tokenizer.eos_token_id)

    def ids(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def chat_ids(self, question: str) -> list[int]:
        messages = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.ids(text)

    @torch.inference_mode()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """Row i is the distribution of the token after position i."""
        return torch.log_softmax(self.model(torch.tensor([ids])).logits[0].float(), -1)

    @torch.inference_mode()
    def greedy(self, ids: list[int], count: int) -> list[int]:
        """New tokens, a final EOS included."""
        prompt = torch.tensor([ids])
        out = self.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count, pad_token_id=self.eos
        )
        return out[0, len(ids) :].tolist()

    def prompts(self) -> list[list[int]]:
        """Twelve of very different lengths: code and questions."""
        code = [self.ids(text) for text in CODE]
        code[0] = self.ids("".join(CODE * 4))
        return [*code, *(self.chat_ids(question) for question in QUESTIONS)]
