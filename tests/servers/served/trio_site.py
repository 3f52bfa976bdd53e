import app
import trio

asgi = app.serving(trio.sleep)
