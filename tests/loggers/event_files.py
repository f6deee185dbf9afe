"""Reads the files of TensorBoard."""

import struct


def read_records(directory):
    """The records of TensorBoard's files: a length, its checksum, that many bytes, their checksum."""
    from tensorboardX.proto.event_pb2 import Event as Record

    for path in sorted(directory.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Record.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4


def read_events(directory):
    """The values in TensorBoard's files."""
    found = {}
    for record in read_records(directory):
        for value in record.summary.value:
            content = value.histo if value.HasField("histo") else value.simple_value
            found.setdefault(value.tag, []).append((record.step, content))
    return found
