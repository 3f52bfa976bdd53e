"""Sessions go on: those that were signed before the patch are read, with whichever key, and others are not."""

import hashlib
import http.client

import poc


@poc.app.route("/name")
def name():
    return poc.session.get("user", "nobody")


def signed(key):
    signer = poc.URLSafeTimedSerializer(
        key,
        salt="cookie-session",
        serializer=poc.TaggedJSONSerializer(),
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha1},
    )
    return signer.dumps({"user": "carol"})


def user(cookie):
    connection = http.client.HTTPConnection("127.0.0.1", poc.server.server_port, timeout=5)
    connection.request("GET", "/name", headers={"Cookie": f"session={cookie}"})
    answer = connection.getresponse().read().decode()
    connection.close()
    return answer


before = poc.fresh()


def works():
    return (
        user(before) == "alice"
        and user(poc.fresh()) == "alice"
        and user(signed("current")) == user(signed("leaked-last-year")) == "carol"
        and user(signed("a guess")) == "nobody"
    )
