# What the compiled `syscalls` calls in the C library.

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
