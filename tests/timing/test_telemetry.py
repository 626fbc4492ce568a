"""The columns that come of readings."""

from basedbench.timing.telemetry import Reading, Telemetry, summary


def reading(clock: float = 1980, temperature: float = 50, bits: int = 0) -> Reading:
    return Reading(clock, 3201, 300, temperature, bits)


def test_means_the_hottest_moment_and_every_reason() -> None:
    found = summary([reading(1980, 50), None, reading(1500, 70, 0x04), reading(1500, 60, 0x20 | 0x04)])
    assert found == {
        "clock_mhz": 1660,
        "memory_clock_mhz": 3201,
        "power_w": 300,
        "temperature_c": 70,
        "throttled": True,
        "throttle_reason": "power cap, temperature",
    }


def test_idling_and_clocks_set_by_hand_are_no_throttling() -> None:
    assert summary([reading(bits=0x01 | 0x02)])["throttled"] is False


def test_no_readings_are_no_columns() -> None:
    assert Telemetry("cpu").read() is None
    assert summary([None, None]) == {}
