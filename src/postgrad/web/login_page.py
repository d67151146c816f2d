"""Signing in and accepting an invitation. The browser posts the form itself: the session is a cookie no script sees."""

from __future__ import annotations

from typing import Final

from nicegui import ui

_SEND: Final = """
async (event) => {
  event.preventDefault();
  const form = document.getElementById('pg-login'), said = document.getElementById('pg-said');
  const invitation = new URLSearchParams(location.search).get('invitation');
  const body = {name: form.elements['name'].value, password: form.elements['password'].value};
  if (invitation) body.invitation = invitation;
  said.textContent = 'One moment ...';
  try {
    const answer = await fetch(invitation ? '/auth/accept' : '/auth/login', {
      method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)});
    const next = new URL(new URLSearchParams(location.search).get('next') || '/', location.origin);
    if (answer.ok) { location.href = next.origin === location.origin ? next.href : '/'; return; }
    said.textContent = (await answer.json()).error.message;
  } catch (e) { said.textContent = 'The server cannot be reached; try again.'; }
}
"""


def build_login() -> None:
    """A form that works with the keyboard and a password manager; `?invitation=` makes an account of it."""
    ui.colors(primary="#2457a6")
    with ui.card().classes("pg-login"):
        ui.label("postgrad").classes("pg-brand")
        ui.html(
            """
            <form id="pg-login">
              <label>Name <input name="name" autocomplete="username" required autofocus></label>
              <label>Password <input name="password" type="password" autocomplete="current-password" required></label>
              <button type="submit">Sign in</button>
              <p id="pg-said" role="alert"></p>
            </form>
            """,
            sanitize=False,
        ).on("submit", js_handler=_SEND)
