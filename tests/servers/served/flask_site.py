import logging

import app
import flask

logging.getLogger("werkzeug").setLevel("WARNING")
site = flask.Flask(__name__)


@site.get("/")
def answer():
    return flask.Response(app.answer(), mimetype="application/json")
