"""How a dyno that has no agent gets one: the file it fetches, and the command line that does it.

Neither holds a secret: what a dyno may do here is decided by the join token in its environment. The
command names the file by its SHA-256, so a dyno runs the agent that this gateway meant, or none.
"""

import re

from aiohttp import web

from dyno_agent.link import PATH
from gateway.rendezvous.archive import Archive

INSTALLED = "exec python3 -m dyno_agent"
"""The command of a dyno whose app has our package. With `exec` no shell stays, whose environment
the child could read."""

_FOLDER = PATH.rpartition("/")[0]

_FOREVER = "public, max-age=31536000, immutable"
"""The name says the content."""

_FETCH = f"""\
import hashlib,os,sys,tempfile,urllib.request
from time import*
a=sys.argv;e=os.environ;w=.5
def no(m,n=78):print("agent:",m,file=sys.stderr);sys.exit(n)
u=e.get("RENDEZVOUS_URL","")
u[:6]=="https:"or u[7:10]in("loc","127","[::")or no("RENDEZVOUS_URL must be https")
t=time()+float(e.get("RENDEZVOUS_START_DEADLINE_S",120))
while 1:
 try:b=urllib.request.urlopen(u+"{_FOLDER}/agent-%s.pyz"%a[1],None,9).read();break
 except Exception as x:
  w=min(9,w*2)
  if time()+w>t:no(x,1)
  sleep(time()%1*w)
hashlib.sha256(b).hexdigest()==a[1]or no("the file has another SHA-256")
f,p=tempfile.mkstemp();os.write(f,b);e["RENDEZVOUS_FETCHED"]=p
x=sys.executable;os.execv(x,[x,"-IS",p]+a[2:])"""
"""Python from 3.9 on, in as few characters as still can be read, for it shows in lists of dynos.

The URL, which ends without a slash, is checked roughly, to fail at once; the agent has the precise
rule. A gateway that does not answer well may be restarting; the fraction of the present second is
jitter enough. The file is private (mkstemp), and the agent removes it. Nothing of the app is
imported, now or later: `-I` keeps out its working directory and PYTHON… variables, `-S` its
site-packages. The variables themselves stay, for the child."""


def command(sha256: str) -> str:
    r"""Return the shell line that fetches and runs the agent of this hash; arguments may follow.

    The shell takes all between single quotes as it is; Python then turns `\n` into line ends, so
    that the line is a single one.

    Raises:
        ValueError: not a SHA-256 in lower-case hex.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError("not a SHA-256")
    code = _FETCH.replace("\n", r"\n")
    return f"""exec python3 -ISc 'exec(\"\"\"{code}\"\"\")' {sha256}"""


class Bootstrap:
    """Handler of `GET /agent/v1/agent-<sha256>.pyz`."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def routes(self) -> list[web.RouteDef]:
        """Return the one route of this room; it needs no key."""
        return [web.get(_FOLDER + "/agent-{sha256:[0-9a-f]{64}}.pyz", self.agent)]

    async def agent(self, request: web.Request) -> web.Response:
        """Serve the agent to who knows its hash; another gateway's is not here."""
        if request.match_info["sha256"] != self._archive.sha256:
            raise web.HTTPNotFound(text="no such agent; this gateway serves another one\n")
        return web.Response(
            body=self._archive.content,
            content_type="application/zip",
            headers={"Cache-Control": _FOREVER, "X-Content-Type-Options": "nosniff"},
        )
