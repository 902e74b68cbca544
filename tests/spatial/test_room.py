import numpy as np
import pytest

from dualspec_jax.metrics import ild_db, itd_us
from dualspec_jax.spatial.hrtf import spherical_head
from dualspec_jax.spatial.room import Room, RoomRanges, draw_distance, draw_room, render_room

pytest.importorskip("pyroomacoustics")
HEAD = spherical_head()
TAPS = 8000
ROOM = Room(size_m=(5.0, 4.0, 3.0), rt60_s=0.4, absorption=0.26, head_m=(2.0, 1.7, 1.4), yaw_deg=30.0)


@pytest.fixture(scope="module")
def response():
    return render_room(ROOM, 60.0, 1.2, HEAD, np.random.default_rng(0), TAPS)


@pytest.mark.parametrize("azimuth", [60.0, 217.0])
def test_direct_sound_is_that_of_the_hrtf(azimuth):
    response = render_room(ROOM, azimuth, 1.0, HEAD, np.random.default_rng(0), TAPS)
    direct = HEAD.at(azimuth)
    # The first reflection, from the floor 1.4 m below or the ceiling, comes over 2 m (90 samples) later.
    early = response[:, :64]
    np.testing.assert_allclose(early, direct[:, :64], atol=2e-3 * np.abs(direct).max())
    assert abs(itd_us(early.T) - itd_us(direct[:, :64].T)) < 10
    assert abs(ild_db(early.T) - ild_db(direct[:, :64].T)) < 0.2


def test_reflections_come_when_their_way_is_that_much_longer(response):
    power = (response**2).sum(0)
    # Source 1.2 m away at the height of the ears; the floor's mirror image lies 2 * 1.4 m below the source.
    delay = (np.hypot(1.2, 2.8) - 1.2) / 343 * 16000
    around = power[int(delay) - 4 : int(delay) + 40].sum()
    before = power[64 : int(delay) - 12].sum()
    assert around > 20 * before


def test_energy_decays_with_the_reverberation_time(response):
    energy = np.cumsum((response**2).sum(0)[::-1])[::-1]
    level = 10 * np.log10(energy / energy[0])
    low, high = np.argmax(level < -10), np.argmax(level < -30)
    rt60 = 60 / 20 * (high - low) / 16000
    assert rt60 == pytest.approx(ROOM.rt60_s, rel=0.25)  # Sabine's own rule is not better than this


def test_a_far_source_has_more_reverberation():
    near, far = (render_room(ROOM, 0.0, d, HEAD, np.random.default_rng(0), TAPS) for d in (0.6, 1.8))
    ratio = lambda x: (x[:, :64] ** 2).sum() / (x[:, 300:] ** 2).sum()
    assert ratio(near) > 5 * ratio(far)  # 9 times the distance squared


def test_drawn_rooms_stay_within_their_ranges_and_sources_inside():
    ranges = RoomRanges(size_m=((3.0, 3.0, 2.5), (6.0, 5.0, 3.0)), rt60_s=(0.3, 0.5), distance_m=(0.5, 8.0))
    rng = np.random.default_rng(0)
    for _ in range(200):
        room = draw_room(ranges, rng)
        assert all(low <= x <= high for x, low, high in zip(room.size_m, *ranges.size_m, strict=True))
        assert 0.3 <= room.rt60_s <= 0.5 and 0 < room.absorption <= 0.99
        azimuth = rng.uniform(0, 360)
        distance = draw_distance(room, azimuth, ranges, rng)
        angle = np.deg2rad(room.yaw_deg + azimuth)
        place = np.array(room.head_m[:2]) + distance * np.array([np.cos(angle), np.sin(angle)])
        assert np.all(place > 0.29) and np.all(place < np.array(room.size_m[:2]) - 0.29) and distance >= 0.5


def test_bad_rooms_are_named():
    with pytest.raises(ValueError, match=r"rooms.rt60_s = \(0.5, 0.2\)"):
        RoomRanges(rt60_s=(0.5, 0.2))
    with pytest.raises(ValueError, match="rooms.ear_height_m"):
        RoomRanges(ear_height_m=(1.0, 2.3))
    with pytest.raises(ValueError, match="outside the room"):
        render_room(ROOM, 0.0, 9.0, HEAD, np.random.default_rng(0), TAPS)
