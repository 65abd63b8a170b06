# What has a type of C in the compiled variant.

cdef int BULK


cdef class SocketIO:
    cdef int _fd
    cdef bint _bulk


cdef class Poller:
    cdef int _fd
    cdef readonly object epoll
