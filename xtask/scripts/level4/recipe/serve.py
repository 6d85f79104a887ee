#!/usr/bin/python3
# Serves the image of an OCI layout as the repository library/tiny of a registry.
import http.server, json, pathlib, sys

layout = pathlib.Path(sys.argv[1])
manifest = json.loads((layout / "index.json").read_text())["manifests"][0]

class Registry(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        kind, _, reference = self.path.removeprefix("/v2/library/tiny/").partition("/")
        if self.path == "/v2/":
            return self.answer(b"{}", "application/json")
        if kind == "manifests" and not reference.startswith("sha256:"):
            reference = manifest["digest"]
        blob = layout / "blobs" / reference.replace(":", "/")
        if kind not in ("manifests", "blobs") or not blob.is_file():
            return self.send_error(404)
        media = manifest["mediaType"] if kind == "manifests" else "application/octet-stream"
        self.answer(blob.read_bytes(), media, reference)

    do_HEAD = do_GET

    def answer(self, body, media, digest=None):
        self.send_response(200)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", 5000), Registry).serve_forever()
