"""Links are still made, by templates that are older than the patch too, and a reset mail still gets out."""

import poc
from django.core import mail
from django.test import override_settings

LINKS = {
    "see www.example.com.": 'see <a href="http://www.example.com" rel="nofollow">www.example.com</a>.',
    "(https://a.example/x?a=1&b=2)": (
        '(<a href="https://a.example/x?a=1&amp;b=2" rel="nofollow">https://a.example/x?a=1&amp;b=2</a>)'
    ),
    "a@b.example; &lt;b&gt;": '<a href="mailto:a@b.example">a@b.example</a>; &amp;lt;b&amp;gt;',
}
form = poc.PasswordResetForm({"email": "c@d.example"})


def sent():
    mail.outbox = []
    with override_settings(EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend"):
        form.send_mail("s.txt", "b.txt", {"user": poc.User(pk=7)}, "a@b.example", "c@d.example")
    return [(message.subject, message.body, message.to) for message in mail.outbox]


def works():
    made = {text: poc.template.render(poc.Context({"text": text})) for text in LINKS}
    return made == LINKS and form.is_valid() and sent() == [("s", "b", ["c@d.example"])]
