"""The errors that tersor raises on purpose: one small family, one name per rule of FORMAT.md.

Every message says what is wrong, where (file and tensor) and what to do next. The command
line turns each class into a documented exit status; nothing else should reach a user.
"""

from __future__ import annotations


class TersorError(Exception):
    """Base of every error raised on purpose. `exit_status` is what the command line returns."""

    exit_status = 1


class UsageError(TersorError):
    """The request itself cannot be carried out: a wrong path, option or combination."""

    exit_status = 2


class OutputExists(UsageError):
    """The output of a finished job is there already; it is never overwritten."""


class FormatError(TersorError):
    """A checkpoint breaks a rule of FORMAT.md, or of safetensors below it."""

    exit_status = 3


class NotTersor(FormatError):
    """The directory holds no checkpoint of this format."""


class UnknownVersion(FormatError):
    """A format version newer than this software."""


class UnknownCodec(FormatError):
    """A codec this software does not know."""


class UnknownDtype(FormatError):
    """A dtype this software does not know, or that its codec cannot hold."""


class MissingShard(FormatError):
    """The index names a shard that is not there."""


class IndexMismatch(FormatError):
    """The index and the shards do not hold the same tensors."""


class BadHeader(FormatError):
    """A safetensors header that is too large, cut off or not the JSON it must be."""


class BadRange(FormatError):
    """Data ranges that overlap, leave holes, leave the file or do not fit their shape."""


class BadManifest(FormatError):
    """The manifest is missing, malformed, or contradicts another shard's."""


class MissingTensor(FormatError):
    """A described tensor, or one of its parts, is not stored."""


class ExtraTensor(FormatError):
    """A stored tensor that nothing describes."""


class WrongDtype(FormatError):
    """A stored tensor whose dtype is not the declared one."""


class WrongShape(FormatError):
    """A stored tensor whose shape is not the declared one."""


class MissingGuard(FormatError):
    """No guard tensor: other software could load this checkpoint wrongly."""


class BadBook(FormatError):
    """Code lengths that are no complete prefix code."""


class BadOffsets(FormatError):
    """Tile offsets that do not start at 0, do not grow, or leave the buffer."""


class BadTile(FormatError):
    """Stream lengths that do not fill their tile."""


class BadParameters(FormatError):
    """Parameters of a quantised tensor that are missing, unknown or out of range."""


class BadOrder(FormatError):
    """A column order that is no permutation."""


class BadOutliers(FormatError):
    """Outliers that are miscounted, unsorted or outside the matrix."""


class BadStats(FormatError):
    """Scales or zeros that are not finite, or would not be with the largest codes."""


class BadSteps(FormatError):
    """Column steps that are not positive finite numbers."""


class VerificationError(TersorError):
    """The data is not what it claims to be."""

    exit_status = 4


class HashMismatch(VerificationError):
    """The decoded bytes do not have the stated SHA-256."""


class NotCanonical(VerificationError):
    """Stored bytes that decode to the right values but are not the ones an encoder writes."""


class Interrupted(TersorError):
    """Reading or writing failed half-way (disk full, no permission); what was done is kept for a resume."""

    exit_status = 5


class MissingDependency(TersorError):
    """An optional library is needed for this; the message says what to install."""

    exit_status = 6


class KernelError(TersorError):
    """A GPU kernel cannot be compiled, loaded or launched; the message carries the compiler's or driver's word."""

    exit_status = 7
