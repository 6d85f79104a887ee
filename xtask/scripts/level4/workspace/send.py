#!/usr/bin/python3
# Sends standard input to a port of loopback, and prints the answer.

import shutil, socket, sys, threading
to = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
def send():
    to.sendfile(sys.stdin.buffer)
    to.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
shutil.copyfileobj(to.makefile('rb'), sys.stdout.buffer, 1 << 20)
