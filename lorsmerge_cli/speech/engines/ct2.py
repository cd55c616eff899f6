"""CTranslate2: each model is converted into a temporary folder, which is gone when it is loaded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorsmerge_cli.data.utterance import Answer, Utterance
from lorsmerge_cli.errors import LorsmergeError, Mismatch, OutputFault, UsageFault
from lorsmerge_cli.inputs import read_json
from lorsmerge_cli.outputs import SPARE_BYTES, write_json
from lorsmerge_cli.speech.ctranslate import check_installed, check_network, convert
from lorsmerge_cli.speech.engines.engine import Engine
from lorsmerge_cli.speech.settings import AUTO_DTYPE, DTYPES, full_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from lorsmerge_cli.speech.decoding.clips import DecodingSettings
    from lorsmerge_cli.speech.decoding.ear import Ear, Search
    from lorsmerge_cli.speech.decoding.window_search import Found
    from lorsmerge_cli.speech.features import Features
    from lorsmerge_cli.speech.model import SpeechModel
    from lorsmerge_cli.speech.source import ModelSource

OPTION = "--engine ct2"
QUANTIZED = {"int8": "int8_float32"}  # --dtype -> CTranslate2's name; plain int8 may be several
END = "<|endoftext|>"  # by which it knows the end of a text, whatever the config says
TORCHS = "Use --engine torch."
GROWTH = 1.01  # of a folder over its tensors: names, the vocabulary


class _Decoder:
    """A model that is converted when it is prepared: not if all is decoded already."""

    def __init__(self, source: ModelSource, dtype: str, device: str) -> None:
        import torch

        from lorsmerge_cli.core.device import resolve_device

        self.source, self.dtype, self.speech = source, dtype, source.without_weights
        # which batches are sized by, as the other engine's
        self.speech.model.device = resolve_device(device)
        self.speech.model.dtype = getattr(torch, dtype, torch.float32)
        self._model: Any = None

    def prepare(self, settings: DecodingSettings) -> None:
        if self._model is None:
            self._model = self._loaded(settings)

    def answers(
        self,
        utterances: Sequence[Utterance],
        settings: DecodingSettings,
        progress: Callable[[Utterance, Answer], None],
        features: Features,
    ) -> dict[str, Answer]:
        from lorsmerge_cli.speech.decoding.clips import decode_batches

        def answer(batch: Tensor, prompts: Tensor) -> list[Answer]:
            return self._answer(batch, prompts, settings)

        return decode_batches(self.speech, utterances, settings, answer, progress, features)

    def ear(self) -> Ear:
        from lorsmerge_cli.speech.decoding.clips import DecodingSettings

        self.prepare(DecodingSettings().with_lists_of(self.speech))
        return _Ear(self._model, self.speech)

    def _loaded(self, settings: DecodingSettings) -> Any:
        """Convert the model and load it; the folder is removed, also after an interruption."""
        import ctranslate2
        import torch

        device = self.speech.model.device
        with tempfile.TemporaryDirectory(prefix="lorsmerge-ct2-") as name:
            self._convert(Path(name))
            config = Path(name) / "config.json"
            # a call can only switch a model's own list on or off
            own = {"suppress_ids_begin": self.speech.known(settings.begin_suppress)}
            write_json(config, read_json(config) | own)
            return ctranslate2.models.Whisper(
                name, device.type, device_index=device.index or 0, compute_type=self.dtype,
                intra_threads=torch.get_num_threads(),
            )  # fmt: skip

    def _convert(self, folder: Path) -> None:
        import torch

        source = self.source
        size = sum(spec.numel for spec in source.checkpoint.specs.values()) * 4
        size = int(GROWTH * size)  # of quantized weights it is less
        free = shutil.disk_usage(folder).free
        if size + SPARE_BYTES > free:
            raise OutputFault(
                f"{source.name} takes {size:,} bytes for CTranslate2, and {folder.parent} has {free:,} "
                "bytes free.",
                f"Free some space, set TMPDIR to another disk, or {TORCHS[0].lower()}{TORCHS[1:]}",
            )
        speech = source.open(torch.float32, "cpu")
        try:
            convert(source.folder, folder, self.dtype, loaded=speech)
        except (LorsmergeError, OSError):
            raise
        except Exception as error:
            raise Mismatch(
                f"{source.name} cannot be converted for CTranslate2 ({type(error).__name__}: {error}).",
                TORCHS,
            ) from error

    def _answer(self, batch: Tensor, prompts: Tensor, settings: DecodingSettings) -> list[Answer]:
        given = prompts.shape[1]
        room = self.speech.longest_label - given
        room = room if settings.max_tokens is None else min(room, settings.max_tokens)
        with _memory_errors():
            found = self._model.generate(
                _view(batch),
                prompts.tolist(),
                beam_size=settings.beam,
                num_hypotheses=settings.beam,
                length_penalty=0.0,  # whole sums, see `_best`
                return_scores=True,
                max_length=_max_length(room, given),
                suppress_tokens=self.speech.known(settings.suppress),
                suppress_blank=bool(self.speech.known(settings.begin_suppress)),
            )
        tokens = [_best(each, room) for each in found]
        texts = self.speech.texts(tokens)
        return [Answer(text, len(said) >= room) for text, said in zip(texts, tokens, strict=True)]


@dataclass(frozen=True)
class _Ear:
    """A converted model, as `Ear` has it.

    Windows are heard as their features and what the encoder makes of these.

    Samples at temperatures above 0 are CTranslate2's own, from one generator for all windows.
    """

    model: Any
    speech: SpeechModel

    def encode(self, features: Tensor) -> tuple[Tensor, Any]:
        return features, self.model.encode(_view(features))

    def languages(self, heard: tuple[Tensor, Any], rows: Sequence[int]) -> list[tuple[str, float]]:
        if not getattr(self.speech.model.generation_config, "is_multilingual", True):
            return [("en", 1.0)] * len(rows)
        if not self.model.is_multilingual:  # so it is of most vocabularies but OpenAI's
            raise UsageFault(
                f"CTranslate2 takes {self.speech.name} for English-only by its vocabulary, and "
                "identifies no language.",
                f"Give --language, or {TORCHS[0].lower()}{TORCHS[1:]}",
            )
        found = self.model.detect_language(self._encoded(heard, rows))
        return [(each[0][0].strip("<|>"), each[0][1]) for each in found]

    def search(self, heard: tuple[Tensor, Any], rows: Sequence[int], search: Search) -> list[Found]:
        lengths = [len(prompt) for prompt in search.prompts]
        found: dict[int, Found] = {}
        for length in dict.fromkeys(lengths):  # it takes prompts of one length at a time
            same = [place for place, other in enumerate(lengths) if other == length]
            part = self._encoded(heard, [rows[place] for place in same])
            prompts = [search.prompts[place] for place in same]
            found |= dict(zip(same, self._generate(part, prompts, search), strict=True))
        return [found[place] for place in range(len(lengths))]

    def _encoded(self, heard: tuple[Tensor, Any], rows: Sequence[int]) -> Any:
        features, encoded = heard
        whole = list(rows) == [*range(len(features))]
        return encoded if whole else self.model.encode(_view(features[list(rows)]))

    def _generate(
        self, heard: Any, prompts: Sequence[Sequence[int]], search: Search
    ) -> list[Found]:
        from lorsmerge_cli.speech.decoding.timestamps import LATEST_START
        from lorsmerge_cli.speech.decoding.window_search import Found, no_speech_token

        given = len(prompts[0])
        limit = min(search.most, self.speech.longest_label + 1 - given)
        rules, times, random = search.rules, search.rules.timestamps, search.temperature > 0
        with _memory_errors():
            found = self.model.generate(
                heard, [list(prompt) for prompt in prompts],
                beam_size=1 if random else search.group, num_hypotheses=search.group,
                sampling_topk=0 if random else 1, sampling_temperature=search.temperature or 1.0,
                length_penalty=0.0, return_scores=True, return_no_speech_prob=True,
                max_length=_max_length(limit, given), suppress_tokens=rules.never,
                suppress_blank=bool(rules.begin_suppress),
                max_initial_timestamp_index=round(LATEST_START / times.step) if times else 50,
            )  # fmt: skip
        knows_silence = no_speech_token(self.speech) is not None
        results = []
        for each in found:
            pairs = zip(each.scores, each.sequences_ids, strict=True)
            total, tokens = max(pairs, key=lambda pair: pair[0] / max(1, len(pair[1])))
            silent = each.no_speech_prob if knows_silence else None
            results.append(
                Found(tuple(tokens), total / (len(tokens) + 1), silent, len(tokens) >= limit)
            )
        return results


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise CTranslate2's out-of-memory error as PyTorch's, which is told with advice."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


def _view(features: Tensor) -> Any:
    import ctranslate2

    return ctranslate2.StorageView.from_array(features.contiguous().numpy())


def _max_length(room: int, given: int) -> int:
    """Return its `max_length` for a text of some tokens after a prompt of some.

    It says at most half of this, and all of the prompt but its last token counts.
    """
    return room + max(room, given - 1)


def _best(found: Any, room: int) -> list[int]:
    """Return the hypothesis with the best mean log-probability, the end counted where there is one.

    That is the other engine's rule. CTranslate2 leaves the end out of the length that it divides
    the sum by, which makes it prefer longer texts.
    """
    pairs = zip(found.scores, found.sequences_ids, strict=True)
    _, tokens = max(pairs, key=lambda pair: pair[0] / min(len(pair[1]) + 1, room))
    return [*tokens]


def _unfit(source: ModelSource) -> list[LorsmergeError]:
    """Return why CTranslate2 would compute another network, or with other tokens."""
    config: Any = source.parts.config
    faults = check_network(source.name, config.to_dict(), TORCHS)
    known = source.without_weights.vocabulary
    if sorted(known.values()) != [*range(len(known))] or len(known) > config.vocab_size:
        faults.append(
            Mismatch(
                f"{source.name}: CTranslate2 takes tokens that are numbered from 0 on without a gap, "
                f"up to the model's {config.vocab_size} of them, and the tokenizer's are not.",
                TORCHS,
            )
        )
    if known.get(END) != config.eos_token_id:
        faults.append(
            Mismatch(
                f"{source.name}: CTranslate2 ends a text at {END}, and this model at the token "
                f"{config.eos_token_id}.",
                TORCHS,
            )
        )
    return faults


def _check(dtype: str, device: str) -> list[LorsmergeError]:
    faults = check_installed(OPTION)
    if device.startswith("mps"):
        faults.append(
            UsageFault(f"{OPTION} has no --device mps.", f"Use --device cpu, or {TORCHS[4:]}")
        )
    if dtype not in QUANTIZED:
        try:
            full_dtype(dtype, (AUTO_DTYPE, *QUANTIZED))
        except LorsmergeError as fault:
            faults.append(fault)
    return faults


def _dtype(name: str, device: str) -> str:
    """Return the compute type that a --dtype means.

    Raises:
        UsageFault: CTranslate2 has it not on the device, where it would take another without a word.
        DeviceFault: there is no such device.
    """
    import ctranslate2

    from lorsmerge_cli.core.device import resolve_device
    from lorsmerge_cli.speech.source import compute_dtype

    place = resolve_device(device)
    if place.type == "cuda" and (place.index or 0) >= ctranslate2.get_cuda_device_count():
        raise UsageFault(
            f"CTranslate2 finds no {place} here.", f"Use --device cpu, or {TORCHS[4:]}"
        )
    wanted = QUANTIZED.get(name) or compute_dtype(name, device)
    supported = ctranslate2.get_supported_compute_types(place.type, place.index or 0)
    if wanted not in supported:
        usable = [
            dtype for dtype in (*DTYPES, *QUANTIZED) if QUANTIZED.get(dtype, dtype) in supported
        ]
        raise UsageFault(
            f"{OPTION} does not compute in {name} on this {place.type}.",
            f"Use --dtype {' or '.join(usable)}.",
        )
    return wanted


def _stamp(dtype: str) -> str:
    return f"ct2-{version('ctranslate2')}-{dtype}"


CT2 = Engine(_check, _dtype, _stamp, _unfit, _Decoder)
