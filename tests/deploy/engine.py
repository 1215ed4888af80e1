"""A Docker engine, somebody who signs in through what runs on it, and people who keep on working
while it is taken apart."""

import html
import os
import re
import socket
import ssl
import threading
import time
from collections import Counter

import httpx
import pytest
from conftest import ROOT, run

IMAGES = ["postern", "postern-proxy", "postern-authorize", "postern-authenticate", "postern-databroker"]


# Ends every name on the engine: what another run left there, or still does there, is not this run's.
RUN = str(os.getpid())


def docker(*arguments):
    code, out, err = run("docker", *arguments)
    assert code == 0, f"docker {arguments}: {out}{err}"
    return out.strip()


LOCAL = ["postern-local/haproxy", "postern-local/postgres"]


def reached():
    """Leaves the test out, aloud, where no engine answers."""
    if run("docker", "version")[0] != 0:
        note = "deploy: containers are not run: no Docker engine can be reached"
        if "POSTERN_TESTS_LEFT_OUT" in os.environ:
            with open(os.environ["POSTERN_TESTS_LEFT_OUT"], "a") as file:
                file.write(note + "\n")
        pytest.skip(note)


def needed():
    """Leaves the test out where no engine answers; elsewhere brings the images it takes."""
    reached()
    for image in IMAGES:
        assert docker("images", "--quiet", f"postern/{image}"), "the images are not built; run `just images`"
    if not all(docker("images", "--quiet", image) for image in LOCAL):
        code, out, err = run(ROOT / "deploy/compose/ha/local-images.sh")
        assert code == 0, out + err


def until(what, condition, seconds=180):
    """Polls until `condition` gives something; says what it gave last when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.1)


def address(container, network):
    return docker("inspect", "--format", f'{{{{(index .NetworkSettings.Networks "{network}").IPAddress}}}}', container)


class Names:
    """Resolves names as DNS would, for this process: `names` wins over the system."""

    def __init__(self, monkeypatch, names):
        system = socket.getaddrinfo

        def look_up(host, *arguments, **options):
            host = host.decode() if isinstance(host, bytes) else host
            found = next((ip for suffix, ip in names.items() if host == suffix or host.endswith("." + suffix)), host)
            return system(found, *arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)


class Person:
    """A browser, as far as signing in needs one."""

    def __init__(self, authority):
        self.context = ssl.create_default_context(cafile=authority)
        self.client = self.browser()

    def browser(self, cookies=None):
        headers = {"accept": "text/html", "sec-fetch-mode": "navigate"}
        return httpx.Client(
            verify=self.context, follow_redirects=True, timeout=15, headers=headers, cookies=cookies, trust_env=False
        )

    def sign_in(self, url, who="ann"):
        """Opens `url`, picks a person on the provider's page, and gives what the application answers."""
        page = self.client.get(url)
        assert page.status_code == 200, f"{page.url}: {page.status_code} {page.text}"
        form = re.search(r"<form.*?</form>", page.text, re.DOTALL)
        assert form, f"{page.url} has no form: {page.text}"
        action = re.search(r'action="([^"]*)"', form[0])
        fields = dict(re.findall(r'<input[^>]*type="hidden"[^>]*name="([^"]*)"[^>]*value="([^"]*)"', form[0]))
        fields = {name: html.unescape(value) for name, value in fields.items()} | {"person": who}
        return self.client.post(page.url.join(html.unescape(action[1]) if action else ""), data=fields)


class Load:
    """People who are signed in and go on asking: half of them on connections that stay, half on new
    ones. It ends with the `with` block."""

    def __init__(self, person, url, workers=6, says="", again=False):
        # `says`: what stands in a right answer. `again`: a request whose connection broke, or that was
        # refused for now, is sent anew, as people do. Until the balancer has noticed, every other one ends
        # at the same proxy, so a few times are not enough.
        self.person, self.url, self.says, self.again = person, url, says, again
        self.outcomes, self.slowest, self.lock = Counter(), 0.0, threading.Lock()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(n % 2 == 0,), daemon=True) for n in range(workers)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        until("load", lambda: self.outcomes.total() > 20)
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)

    def work(self, stays):
        client = None
        while not self.stop.is_set():
            if client is None or not stays:
                client = self.person.browser(self.person.client.cookies)
            began = time.monotonic()
            outcome = self.ask(client)
            while self.again and isinstance(outcome, str) and time.monotonic() - began < 20:
                client = self.person.browser(self.person.client.cookies)
                outcome = self.ask(client)
            took = time.monotonic() - began
            with self.lock:
                self.outcomes[outcome] += 1
                self.slowest = max(self.slowest, took)
            self.stop.wait(0.02)

    def ask(self, client):
        try:
            answer = client.get(self.url, follow_redirects=False)
            if self.says in answer.text:
                return answer.status_code
            # What is refused for now may be asked again; what was answered wrongly may not.
            return (200, answer.text) if answer.status_code == 200 else f"{answer.status_code}: {answer.text}"
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"

    def total(self):
        return self.outcomes.total()

    def goes_on(self, requests=60):
        """Waits for so many requests more."""
        goal = self.total() + requests
        until(f"{requests} requests more", lambda: self.total() >= goal)
