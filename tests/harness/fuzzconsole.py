"""The console's reading of what its users send, without its sockets."""

from __future__ import annotations

from proxy.admin.conversation import Conversation, Run
from proxy.errors import Failure
from proxy.wire import ProtocolError
from proxy.wire.framing import FrameReader

LIMIT = 1000


def console_messages(data: bytes) -> None:
    """Messages after the login; whatever they ask for is done at once and gives nothing."""
    reader, conversation = FrameReader(LIMIT), Conversation()
    reader.push(data)
    try:
        while not conversation.over and (frame := reader.next_frame()) is not None:
            play(conversation, *frame)
    except ProtocolError:
        return


def play(conversation: Conversation, kind: int, body: bytes) -> bytes:
    """Let a conversation answer a message; raises ProtocolError."""
    said = b""
    try:
        for step in conversation.take(kind, body):
            if isinstance(step, Run):
                step.portal.finished = True
            else:
                said += step
    except Failure as failure:
        said += conversation.failed(failure)
    return said
