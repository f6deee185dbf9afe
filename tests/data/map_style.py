"""Map-style data sets; worker processes import this module, so it imports little."""

import os


class Pairs:
    """Example `i` is row `i` of both arrays; that of `faulty` is what `how` returns."""

    def __init__(self, x, y, faulty=None, how=None):
        self.x, self.y, self.faulty, self.how = x, y, faulty, how

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        assert type(i) is int
        if i == self.faulty:
            return self.how()
        return self.x[i], self.y[i]


class Captioned(Pairs):
    """Example `i` is a dict that has texts, too; the label is in it, or beside it."""

    def __init__(self, x, y, labelled):
        super().__init__(x, y)
        self.labelled = labelled

    def __getitem__(self, i):
        inputs = {"caption": "a" * i, "image": self.x[i], "tags": ["b"] * (i % 3)}
        return {**inputs, "label": self.y[i]} if self.labelled else (inputs, self.y[i])


class Rows:
    """Example `i` is row `i` of all arrays: a tuple, or a dict if there are names."""

    def __init__(self, *arrays, names=None):
        self.arrays, self.names = arrays, names

    def __repr__(self):  # Grain compares it with that of the checkpoint
        return "Rows()"

    def __len__(self):
        return len(self.arrays[0])

    def __getitem__(self, i):
        row = tuple(array[i] for array in self.arrays)
        return row if self.names is None else dict(zip(self.names, row, strict=True))


def broken():
    raise FileNotFoundError("image.png")


def gone():
    os._exit(3)
