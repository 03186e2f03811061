"""
MySQL and MariaDB by way of PyMySQL, which unlike mysqlclient needs no compiler where the site is
installed (requirements-mariadb.txt). Without such a database nothing of it is needed.
"""

import ssl

CONNECT_SECONDS = 3


def adapted(database):
    """
    What DATABASES says of a database, with what PyMySQL wants to be told.

    ``ssl_mode=REQUIRED`` in the URL, which mysqlclient knows, makes it refuse to speak without TLS;
    as with PostgreSQL's ``sslmode=require`` the server's certificate may be anybody's.
    """
    if not database["ENGINE"].endswith("mysql"):
        return database
    import pymysql

    pymysql.install_as_MySQLdb()
    options = {"connect_timeout": CONNECT_SECONDS} | database.get("OPTIONS", {})
    if options.pop("ssl_mode", "") == "REQUIRED":
        options["ssl"] = ssl.create_default_context()
        options["ssl"].check_hostname = False
        options["ssl"].verify_mode = ssl.CERT_NONE
    # PyMySQL writes passwords in Latin 1, everybody else in UTF-8.
    password = database.get("PASSWORD", "").encode().decode("latin-1")
    return database | {"OPTIONS": options, "PASSWORD": password}
