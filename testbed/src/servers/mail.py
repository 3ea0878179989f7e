"""A server of mail for tests: what arrives is printed as a line of JSON each, after a first line with the port.

Arguments: plain, starttls or smtps; ok, refuse, hang or hesitate; and for the last two ways a certificate with its key, a user and a password.
"""

import asyncio
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

way, mode, *rest = sys.argv[1:]


class Handler:
    mails = 0

    async def handle_RCPT(self, server, session, envelope, address, options):
        if mode == "refuse" or address.startswith("refused@"):
            return "550 5.1.1 nobody of that name"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server, session, envelope):
        if mode == "hang":
            await asyncio.sleep(3600)
        print(
            json.dumps(
                {
                    "from": envelope.mail_from,
                    "to": envelope.rcpt_tos,
                    "content": envelope.content.decode("utf-8", "replace"),
                    "authenticated": session.authenticated,
                    "encrypted": way == "smtps" or session.ssl is not None,
                }
            ),
            flush=True,
        )
        Handler.mails += 1
        if mode == "hesitate" and Handler.mails == 1:
            return "451 4.3.0 once more"
        return "250 2.0.0 taken"


def authenticate(server, session, envelope, mechanism, data):
    user, password = rest[1:3]
    return AuthResult(success=data.login == user.encode() and data.password == password.encode())


def protocol(context):
    if way == "plain":
        return SMTP(Handler(), enable_SMTPUTF8=True)
    starttls = {"tls_context": context, "require_starttls": True} if way == "starttls" else {"auth_require_tls": False}
    return SMTP(Handler(), enable_SMTPUTF8=True, authenticator=authenticate, auth_required=True, **starttls)


async def main():
    context = None
    if way != "plain":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(rest[0])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(context), "127.0.0.1", 0, ssl=context if way == "smtps" else None)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
