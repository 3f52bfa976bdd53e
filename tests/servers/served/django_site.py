"""A Django site in one file, with a view of each kind, for WSGI and for ASGI."""

import asyncio

import app
import django
import work
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="none", MIDDLEWARE=[], USE_TZ=True)
django.setup()


def answer(request):
    return HttpResponse(app.answer(), content_type="application/json")


async def answer_later(request):
    return HttpResponse(await app.answer_later(asyncio.sleep), content_type="application/json")


async def crossing(request):
    """Half of it in the thread that Django keeps for what is not asynchronous."""
    first, chain = work.edge(), await sync_to_async(work.answer)()
    return HttpResponse(app.report([first, await sync_to_async(work.edge)()], chain), content_type="application/json")


urlpatterns = [path("", answer), path("later", answer_later), path("crossing", crossing)]
wsgi = get_wsgi_application()
asgi = get_asgi_application()
