"""Which options are in a key."""

from expandr_core.options import Options, added, identity, runtime


class Grown(Options):
    first: int = 1
    speed: int = runtime(2)
    later: str = added("as before", description="Came later.")


def test_an_option_added_later_leaves_the_keys_of_before_as_they_are():
    assert identity(Grown()) == {"first": 1}
    assert identity(Grown(speed=3, later="as before")) == {"first": 1}
    assert identity(Grown(later="otherwise")) == {"first": 1, "later": "otherwise"}
