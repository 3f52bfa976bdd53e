"""Sessions go on: one that began before the patch is read and changed, and what needs none gets none."""

import http.client

import poc


@poc.app.route("/name")
def name():
    return poc.session.get("user", "nobody")


@poc.app.route("/rename")
def rename():
    poc.session["user"] = "bob"
    return "done"


def cookie_of(response):
    return response.getheader("Set-Cookie").split(";")[0]


def text(path, cookie=None):
    connection = http.client.HTTPConnection("127.0.0.1", poc.server.server_port, timeout=5)
    connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
    answer = connection.getresponse().read().decode()
    connection.close()
    return answer


before = cookie_of(poc.get("/login"))


def works():
    plain = poc.get("/public")
    renamed = poc.get("/rename", before)
    return (
        text("/name", before) == "alice"
        and text("/name", cookie_of(renamed)) == "bob"
        and "Cookie" in renamed.getheader("Vary")
        and text("/name") == "nobody"
        and plain.getheader("Set-Cookie") is None
        and plain.getheader("Vary") is None
    )
