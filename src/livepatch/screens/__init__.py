"""What people look at: the words and the drawings that the commands share, and `top`, a screen that stays.

`words` needs nothing, `draw` needs rich; `watch` and `host` look at the processes and know nothing of screens; `top`
and `dialogs` are the screen, which needs Textual (the extra `top`). Each is imported only where it is used.
"""
