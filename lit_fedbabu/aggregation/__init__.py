"""How the updates of a round's clients become one."""
