"""Measurements of text that the cache keeps."""

from mcframe.data.cache import remembered


def counted(values):
    """Return a measurement that yields these values in turn."""
    pending = iter(values)
    return lambda: next(pending)


def test_a_key_is_measured_once(cache):
    measure = counted([[1, "a"], [2, "b"]])
    assert remembered("size", ["text", 1], measure) == [1, "a"]
    assert remembered("size", ["text", 1], measure) == [1, "a"]
    assert remembered("size", ["text", 2], measure) == [2, "b"]


def test_a_damaged_file_is_measured_again(cache):
    measure = counted([1, 2, 3])
    assert remembered("size", "key", measure) == 1
    (file,) = (cache / "measured").iterdir()
    file.write_text('{"half')
    assert remembered("size", "key", measure) == 2
    assert remembered("size", "key", measure) == 2


def test_without_a_cache_it_is_measured_each_time(cache):
    (cache / "measured").write_text("a file where the folder would be")
    measure = counted([1, 2])
    assert [remembered("size", "key", measure) for _ in range(2)] == [1, 2]
