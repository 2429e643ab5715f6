"""The tokenizer both embedded models share: byte-level BPE of 4096, digits one by one, a small chat template."""

from __future__ import annotations

import itertools
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.corpus import source_text
from models.problems import problems

VOCABULARY = 4096
SPECIAL = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")

CHAT_TEMPLATE = """\
<|begin|>{%- for message in messages -%}
{%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}
{{- '<|' + role + '|>' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- elif message['content'] -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}
{%- for call in message.get('tool_calls') or [] -%}
{{- '<tool_call>' + call['function'] | tojson + '</tool_call>' -}}
{%- endfor -%}
{%- if not (loop.last and continue_final_message | default(false)) -%}<|end|>{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def train_tokenizer(folder: Path) -> None:
    """Learn the merges from the training side of the corpus and write a Hugging Face tokenizer folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    arithmetic = (f"{p.question}\n{p.solution}" for p in itertools.islice(problems(0, held_out=False), 4000))
    tokenizer.train_from_iterator(itertools.chain(source_text(held_out=False), arithmetic), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=list(SPECIAL[2:]),
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
