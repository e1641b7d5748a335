"""Packed models for people and programs: conversations, and an OpenAI-compatible server.

Importing this package needs no web framework; `serving.app` and `serving.server` do.
"""

from trilith.serving.batch import Batcher, Failed, Ticket
from trilith.serving.conversation import Conversation, Fitted
from trilith.serving.pieces import FinishReason, Order, Piece, PieceMaker, run_order
from trilith.serving.template import chat_prompt, chat_stop_ids

__all__ = [
    "Batcher",
    "Conversation",
    "Failed",
    "FinishReason",
    "Fitted",
    "Order",
    "Piece",
    "PieceMaker",
    "Ticket",
    "chat_prompt",
    "chat_stop_ids",
    "run_order",
]
