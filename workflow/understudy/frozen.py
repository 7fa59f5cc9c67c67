"""The base of every contract: what is read from a file or handed on is complete, known and never changed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A record that refuses unknown fields.

    Its validator is built when it is first needed: of the many that a command's imports bring along it uses a few.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
