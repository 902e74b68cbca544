"""Say how scenes are made: the settings of a named config, apart from how many there are."""

import dataclasses

from dualspec_jax.spatial.room import RoomRanges
from dualspec_jax.spatial.scene import LEVELS


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hold the settings that scenes depend on, besides the seed and the clips.

    Attributes:
      azimuth_step_deg: directions are multiples of this; None = anywhere, to 0.1 degrees.
      max_sources: 1 to 3; the number of a scene is drawn evenly from 1 to this. Its sources differ in label and lie at
        least `MIN_APART_DEG` apart.
      onset_s: latest start of a further source; the first one starts at once.
      gain_db: range of a further source's level against the first one's.
      heads: how many of the source folder's HRTF files are used, sorted by name, one drawn per scene; None = all.
      room_share: share of the scenes that are in a room; the others are anechoic.
      rooms: bounds of the rooms.
      mirror_share: share of the scenes whose ears are swapped, with caption and directions mirrored.
      level: how clips are brought to one loudness, `rms` or `lufs` (`spatial.scene.LEVELS`).
      min_peak, max_clipped: clips that are quieter, or clipped more, are skipped (`spatial.scene.load_clip`).
      scene_json: store the structured scene with each record.
    """

    azimuth_step_deg: float | None = None
    max_sources: int = 1
    onset_s: float = 2.5
    gain_db: tuple[float, float] = (-6.0, 0.0)
    heads: int | None = None
    room_share: float = 0.0
    rooms: RoomRanges = RoomRanges()
    mirror_share: float = 0.0
    level: str = "lufs"
    min_peak: float = 1e-3
    max_clipped: float | None = 0.01
    scene_json: bool = True

    def __post_init__(self):
        def need(ok: bool, field: str, rule: str) -> None:
            if not ok:
                raise ValueError(f"recipe.{field} = {getattr(self, field)!r}: {rule}")

        step = self.azimuth_step_deg
        need(step is None or (0 < step <= 120 and 360 % step == 0), "azimuth_step_deg", "must divide 360, at most 120")
        need(self.max_sources in (1, 2, 3), "max_sources", "must be 1, 2 or 3")
        need(0 <= self.onset_s <= 4, "onset_s", "must be in [0, 4]")
        need(self.gain_db[0] <= self.gain_db[1] <= 20, "gain_db", "must rise and stay below 20")
        need(self.heads is None or self.heads >= 1, "heads", "must be at least 1, or None for all")
        need(0 <= self.room_share <= 1, "room_share", "must be in [0, 1]")
        need(0 <= self.mirror_share <= 1, "mirror_share", "must be in [0, 1]")
        need(self.level in LEVELS, "level", f"must be one of {', '.join(LEVELS)}")
