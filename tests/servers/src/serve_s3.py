"""moto's S3 server on the port that is named first, one request at a time.

moto looks whether an object is there and then writes it, so of two conditional puts at once both might win.
"""

import sys

from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

app = DomainDispatcherApplication(create_backend_app)
run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=False, request_handler=MotoRequestHandler)
