"""Packed models for people and programs: conversations, and an OpenAI-compatible server.

Importing this package needs no web framework; `serving.app` and `serving.server` do.
"""

from trilith.serving.conversation import Conversation, Fitted
from trilith.serving.pieces import FinishReason, Order, Piece, run_order
from trilith.serving.template import chat_prompt, chat_stop_ids
from trilith.serving.turns import Failed, Ticket, TurnTaker

__all__ = [
    "Conversation",
    "Failed",
    "FinishReason",
    "Fitted",
    "Order",
    "Piece",
    "Ticket",
    "TurnTaker",
    "chat_prompt",
    "chat_stop_ids",
    "run_order",
]
