"""A Django site in one file, with a view of each kind, for WSGI and for ASGI."""

import asyncio

import app
import django
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


urlpatterns = [path("", answer), path("later", answer_later)]
wsgi = get_wsgi_application()
asgi = get_asgi_application()
