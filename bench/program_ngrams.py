"""N-grams of the source that the embedded model was trained on, for superposed decoding."""

from __future__ import annotations

from bench.progress import Begin, Done
from models.corpus import source_files, source_text
from samplers.programs.ngram_counter import NgramCounter
from samplers.programs.ngrams import NgramTables
from server.text.codec import TextCodec


def training_ngrams(codec: TextCodec, begin: Begin, done: Done) -> NgramTables:
    begin(len(source_files(held_out=False)))
    counter = NgramCounter(codec.vocabulary)
    for text in source_text(held_out=False):
        counter.add(codec.encode_plain(text))
        if codec.eos_token_id is not None:  # drafts could not end where no text ever does
            counter.add([codec.eos_token_id])
        counter.end_text()
        done()
    return counter.tables(codec.fingerprint)
