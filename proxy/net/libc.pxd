# What the compiled `syscalls` calls in the C library and in Python.

from cpython.ref cimport Py_XDECREF, PyObject
from libc.errno cimport EAGAIN, EINTR, errno

cdef extern from "sys/socket.h" nogil:
    int MSG_NOSIGNAL
    ssize_t recv(int descriptor, void *buffer, size_t size, int flags)
    ssize_t send(int descriptor, const void *data, size_t size, int flags)


cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        int fd

    struct epoll_event:
        unsigned int events
        epoll_data_t data

    int epoll_wait(int descriptor, epoll_event *events, int most, int milliseconds)


cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *content, Py_ssize_t size) except NULL
    char *content_of "PyBytes_AS_STRING"(PyObject *data)
    int resize "_PyBytes_Resize"(PyObject **data, Py_ssize_t size) except -1


cdef inline object recv_bytes(int descriptor, Py_ssize_t size):
    # What `SocketIO.receive` returns, read straight into a bytes object that is then cut to its length.
    cdef PyObject *data = new_bytes(NULL, size)
    cdef ssize_t count = recv(descriptor, content_of(data), size, 0)
    try:
        if count < 0:
            return None if errno == EAGAIN or errno == EINTR else b""
        if count != size:
            resize(&data, count)
        return <object>data
    finally:
        Py_XDECREF(data)
