"""What docs/reference/wire.md says that the code cannot: its tests keep it in step."""

from __future__ import annotations

KEYWORDS = {
    "PIPELINING": ("RFC 2920", "always"),
    "SIZE": ("RFC 1870", "always, with `message_size`"),
    "8BITMIME": ("RFC 6152", "always"),
    "STARTTLS": (
        "RFC 3207",
        'in plain text, on a listener with `tls = "starttls"`, where `[tls]` is given',
    ),
    "AUTH": (
        "RFC 4954",
        (
            "under TLS (in plain text only with `Server(allow_insecure_auth=True)`), where something "
            "authenticates: the `users` middleware or a hook"
        ),
    ),
    "ENHANCEDSTATUSCODES": ("RFC 2034", "always"),
    "CHUNKING": ("RFC 3030", "with `chunking`"),
    "BINARYMIME": ("RFC 3030", "with CHUNKING, where the delivery can keep its promise"),
    "SMTPUTF8": ("RFC 6531", "with `smtputf8`, where the delivery can keep its promise"),
    "DSN": ("RFC 3461", "with `dsn`, where the delivery can keep its promise"),
    "REQUIRETLS": (
        "RFC 8689",
        "under TLS, with `requiretls`, where the delivery can keep its promise",
    ),
    "LIMITS": (
        "RFC 9422",
        (
            "RCPTMAX with `recipients`, MAILMAX where `transactions` is not 0; each has at most six "
            "digits"
        ),
    ),
    "XCLIENT": ("Postfix's XCLIENT_README", "to clients in the listener's `xclient_from`"),
}
"""The EHLO keywords: where each is defined, and when it is offered."""

REFUSALS = {
    ("app/build.py", "451 4.3.0 Internal error, try again later"): (
        "`preforkmx serve`: a hook or handler failed for a bug. The stack is in the log, and the "
        "session ends."
    ),
    ("session/service.py", "502 5.3.0 Internal error"): (
        "`Server` without `hook_failure=…`: a hook or handler failed for a bug. The stack is in "
        "the log, and the session ends."
    ),
    ("body.py", "552 5.3.4 Message too large for its handler"): (
        "After a message that is larger than a handler's `envelope.data.read_all(limit)` allows."
    ),
    ("delivery/maildir.py", "452 4.3.1 Insufficient system storage"): (
        "After a message for which there is no room on the disk."
    ),
    ("delivery/maildir.py", "451 4.3.0 The message cannot be stored at the moment"): (
        "After a message that the disk failed to take for another reason, which the log has."
    ),
    ("middleware/auth.py", "530 5.7.0 Authentication required"): (
        "At the command that `require_auth` guards, to a client that did not authenticate."
    ),
    (
        "middleware/domains.py",
        "550 5.7.1 Relaying denied: mail for this domain is not taken here",
    ): ("To RCPT with a domain that is not in `domains`."),
    ("middleware/greylist.py", "451 4.3.2 Greylisting is not available, try again later"): (
        "To RCPT, or after the message of a bounce, while the shared state does not answer and "
        "the greylist is told to refuse then."
    ),
    ("middleware/greylist.py", "451 4.7.1 Greylisted, try again in {seconds_left} s"): (
        "To RCPT of a stranger."
    ),
    (
        "middleware/call_forward.py",
        "451 4.4.1 Recipients cannot be looked up at the moment",
    ): (
        "To RCPT and VRFY where the server behind this one does not answer, or answers with "
        "something that says nothing of the recipient, and nobody else knows it."
    ),
    (
        "middleware/harvest.py",
        (
            "450 4.7.1 Too many unknown recipients from your address (limit: unknown), try again "
            "in {seconds} s"
        ),
    ): ("To RCPT and VRFY of a client whose address has asked for too many unknown recipients."),
    ("middleware/recipients.py", "550 5.1.1 No such recipient here"): (
        "To RCPT and VRFY of a recipient that nobody knows who was asked for it."
    ),
    (
        "middleware/recipients_set.py",
        "451 4.4.3 Recipients cannot be looked up at the moment",
    ): (
        "To RCPT and VRFY where the set of recipients cannot be asked, or is not there, and nobody "
        "else knows the recipient."
    ),
    (
        "middleware/rate_limit.py",
        "421 4.7.0 Too many {what} (limit: {limit}), try again in {seconds} s",
    ): (
        "Instead of the greeting, or after XCLIENT, to a client whose address or network opens too "
        "many connections, or whose address has spent one of its budgets; and to AUTH, before the "
        "credentials are looked at, where that budget is of failed authentications or errors."
    ),
    (
        "middleware/rate_limit.py",
        "450 4.7.1 Too many {what} (limit: {limit}), try again in {seconds} s",
    ): (
        "To MAIL or RCPT of a client whose address has spent one of its budgets, or whose reverse "
        "path, forward path or user is above its rate."
    ),
    ("delivery/nexthop/delivery.py", "451 4.5.1 The next hop is not available, try again later"): (
        "`lmtp`, `smtp`: the next hop refused with a code that is none about the message: it takes "
        "no commands, or wants TLS or AUTH that it does not get."
    ),
    ("delivery/nexthop/delivery.py", "452 4.3.1 Insufficient system storage"): (
        "`lmtp`, `smtp`: there is no room for the copy of a message that is compared with one "
        "which only some recipients have."
    ),
    ("middleware/rbl.py", "554 5.7.1 {subject} is listed by {name}{text}"): (
        "To a client whose score reached the threshold: which list weighs most, and its TXT record."
    ),
    ("middleware/spf.py", "550 5.7.23 {text}"): (
        "SPF says fail (RFC 7372 section 3.2): with the domain's explanation, or ours."
    ),
    ("middleware/spf.py", "451 4.7.24 {text}"): (
        "SPF could not be checked: a temporary error of the DNS (RFC 7208 section 8.6)."
    ),
    ("middleware/spf.py", "550 5.7.24 {text}"): (
        'The domain\'s SPF record is invalid, with `on_permerror = "reject"`.'
    ),
    ("middleware/tls.py", "530 5.7.0 Must issue a STARTTLS command first"): (
        "At the command that `require_tls` guards, in plain text."
    ),
    ("middleware/users.py", "454 4.7.0 Temporary authentication failure"): (
        "To credentials that could not be verified: too many wait, or there was no memory."
    ),
}
"""The SMTPErrors of this package, by module and reply: when each is sent."""

MAKERS = {
    "session/answers.py": (
        "When a handler refuses some recipients with `envelope.reject_recipient`, LMTP answers each "
        "for itself. SMTP has one answer for all: the first 4xx among the refusals; else, if all "
        "were refused, the first of them; else the first, with `(not delivered to <…>; the others "
        "have it)` behind its text."
    ),
    "session/hooks.py": (
        "Of a hook's failure that is no SMTPError the client learns nothing but the reply of "
        "`hook_failure`, and its session ends."
    ),
}
"""The modules that make replies out of those errors, and how."""

PASSED_ON = {
    "delivery/nexthop/delivery.py": (
        "`lmtp` and `smtp` answer MAIL, RCPT and the message with the next hop's own refusal, its "
        "code, its enhanced code and its text. A 421 of its becomes 451, and so does whatever is no "
        "answer about the message: `451 4.4.1`, `4.4.2` or `4.5.0`, `The next hop is not available, "
        "try again later`."
    ),
    "app/demo_points.py": (
        "The demo answers RCPT of `451@…`, `550@…` and any other code with it, and the message to "
        "`data-451@…` and the like: `This is a test point of the demo`."
    ),
    "delivery/callout.py": (
        "`recipients` with a back end answers RCPT with that one's own 5xx where it speaks of the "
        "mailbox (X.2.X: it is full, or disabled)."
    ),
}
"""The modules whose refusals have a code that somebody else chose, and how."""
