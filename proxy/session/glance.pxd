# What has a type of C in the compiled variant.

cimport cython

cdef int ANSWER, ANSWER_BOUND, ANSWER_DESCRIBED, ANSWER_PARSED
cdef int ASKS_MORE, ASKS_PIPELINE, ASKS_QUERY, ASKS_UNDESCRIBED
cdef int B_BIND_COMPLETE, B_COMMAND_COMPLETE, B_DATA_ROW, B_NO_DATA, B_PARSE_COMPLETE, B_READY, B_ROW_DESCRIPTION
cdef int F_BIND, F_DESCRIBE, F_EXECUTE, F_PARSE, F_QUERY, F_SYNC
cdef int STATUS_FAILED, STATUS_IDLE, STATUS_TRANSACTION


@cython.locals(text="const unsigned char *", end=Py_ssize_t, kind=int, size=Py_ssize_t)
cpdef Py_ssize_t skip_alike(bytes data, Py_ssize_t pos)

@cython.locals(text="const unsigned char *", end=Py_ssize_t, after=Py_ssize_t, stop=Py_ssize_t, pos=Py_ssize_t, size=Py_ssize_t, answer=int)
cpdef int glance_request(bytes data)

@cython.locals(text="const unsigned char *", end=Py_ssize_t, pos=Py_ssize_t, size=Py_ssize_t, status=int, kind=int, answer=int)
cpdef int glance_reply(bytes data)

cpdef Py_ssize_t end_of_text(bytes data, Py_ssize_t start, Py_ssize_t end)

@cython.locals(text="const unsigned char *")
cdef bint _has_size(bytes data, Py_ssize_t pos, int size)

@cython.locals(text="const unsigned char *", first=int, third=int, found="unsigned char", at=Py_ssize_t)
cdef bint _is_harmless(bytes data, Py_ssize_t start, Py_ssize_t stop)

@cython.locals(text="const unsigned char *", first=int)
cdef bint _leaves_nothing(bytes data, Py_ssize_t tag)
