"""Errors in words: several at once as one, and lists of names that are cut."""

from airy_trio.errors import AiryTrioError, FaultsError, SettingsError, StartError, listed, single_error


def test_error_of_several_tasks_is_reported_with_all_lines_once() -> None:
    first, second = SettingsError(["a: is wrong", "b: is wrong"]), StartError(["b: is wrong", "c: is taken"])
    error = single_error(ExceptionGroup("", [first, ExceptionGroup("", [second, AiryTrioError("d is away")])]))
    assert isinstance(error, FaultsError)
    assert error.faults == ("a: is wrong", "b: is wrong", "c: is taken", "d is away")
    assert error.exit_code == SettingsError.exit_code
    assert StartError.exit_code == 1


def test_errors_with_the_same_lines_are_reported_as_the_first() -> None:
    first = StartError(["a: is wrong"])
    assert single_error(ExceptionGroup("", [first, StartError(["a: is wrong"])])) is first


def test_unexpected_exception_is_not_hidden() -> None:
    group = ExceptionGroup("", [StartError(["a"]), KeyError(1)])
    assert single_error(group) is group


def test_a_list_of_names_is_cut() -> None:
    assert listed("abc", 3) == "a, b, c"
    assert listed("abcde", 3) == "a, b, c and 2 more"
