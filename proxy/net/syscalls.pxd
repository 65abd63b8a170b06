# The types of the fields in C, for the compiled variant.

cdef class SocketIO:
    cdef int _fd


cdef class Poller:
    cdef int _fd
    cdef readonly object epoll
