"""Levenshtein distance: the fewest insertions, deletions and replacements of one character."""


def edit_distance(left: str, right: str) -> int:
    """Distance of two texts by dynamic programming over prefixes, one row kept."""
    row = list(range(len(right) + 1))
    for deletions, a in enumerate(left, start=1):
        diagonal, row[0] = row[0], deletions
        for j, b in enumerate(right, start=1):
            replaced = diagonal + (a != b)
            diagonal = row[j]
            row[j] = min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]
