"""How events move: event types, codec, event logs, consume loop, state store. Knows no model."""
