#!/usr/bin/python3
# Echoes what it receives, on a port and on a socket.

import socketserver, threading
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1 << 20): self.request.sendall(data)
port = socketserver.ThreadingTCPServer(('127.0.0.1', 8080), Echo)
socket = socketserver.ThreadingUnixStreamServer('/run/echo.sock', Echo)
threading.Thread(target=port.serve_forever).start()
socket.serve_forever()
